"""What the gateway's answers were worth: kept beside it, and made into outcomes."""
