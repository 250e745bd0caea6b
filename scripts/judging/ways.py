"""How experts are judged, as plain names: the command line reads them before it loads anything."""

PERPLEXITY = "perplexity"
WAYS = ("exact", "contains", "regex", "numbers", PERPLEXITY, "judge")
