"""What all HTML pages share: the frame, the formats of figures, the drawing of charts."""
