"""A page of charts of runs, finished or not: `python -m lpjax.report`.

lines       the metrics of metrics.jsonl, with fewer points
record      all that a run left in its folder
schedule    who computes what and when in a step, by measured seconds or by operations
charts      how charts look
curves      charts of metrics
drawings    charts of the cut, the schedule and the time
page        the charts, and tables beside them, as one HTML file
"""
