"""One way to make a figure: `python -m experiments NAME`, with lpjax's extra `dev`."""
