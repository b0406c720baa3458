"""Configurations that come with lpjax: `--config=digits` trains `digits.py`."""
