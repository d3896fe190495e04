"""Studies over many trainings: the ablation of variants, the drill of versions."""
