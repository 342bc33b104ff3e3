"""The pictures of a report: SVG by hand, whose colours are CSS variables, so that they suit light and dark."""
