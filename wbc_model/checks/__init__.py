"""What is wrong with single cells: their images are measured, compared with each other, and judged. It imports the params, the
cells and the core."""
