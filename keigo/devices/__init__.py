"""What the devices below the tiers can do: measured profiles, the MQSSD model fitted to them, and their live load.

Knows devices.yaml and nothing else of Keigo: a model is a pure function of plain data, and placement is handed it.
The daemon imports `profile`, `model`, `load`, `staleness` and `identity`, which need neither numpy nor scipy; `fit`
and `baselines` do.
"""
