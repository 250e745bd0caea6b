"""What a router may be told to do: names alone, so that the command line can list them without loading torch."""

VARIANTS = ("top-k", "all", "avg", "prompt")
FEATURE_MAPS = ("identity", "unit", "rff")
BUDGET_PERIODS = ("hour", "day", "month")
BUDGET_ENDS = ("cheapest", "refuse")
