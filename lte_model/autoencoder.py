"""Fits the item encoders of the autoencoder representation."""

import argparse

from lte_model.errors import LTEError, run
from lte_model.representations import AUTOENCODER
from lte_model.settings import load_settings
from lte_model.windows import parse_run_date


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lte_model.autoencoder", description=__doc__)
    parser.add_argument(
        "--date", type=parse_run_date, required=True, help="the day to fit on; it sees events before it"
    )
    parser.add_argument("--anchors", action="store_true", help="every date that the training of --date reads instead")
    parser.add_argument("--settings", help="settings file (default: the one that LTE_SETTINGS names)")
    settings = load_settings(parser.parse_args().settings)
    if AUTOENCODER not in settings.model.representations:
        print(f"nothing to fit: {AUTOENCODER} is not among model.representations of the settings")
        return
    raise LTEError("the autoencoder can't be fitted yet; take it out of model.representations")


if __name__ == "__main__":
    run(main)
