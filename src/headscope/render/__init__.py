"""Drawing: results as SVG, characters and figures for a paper."""
