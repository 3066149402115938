"""Several setups on one hierarchy, compared: interleaved runs, medians, ratios with spread.

`plan` reads what is wanted (over `document`, which knows the lines, and `plan_setups`), `hierarchy` makes the tiers
ready, `setups` are the ways to use them, `traffic` counts what the devices move, `run` does one run in a `worker`
process of its own, `interleave` orders all runs, `results` keeps what came out and its JSON, `summary` makes a report's
document of it.
"""
