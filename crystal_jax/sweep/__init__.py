"""Many runs of one configuration, and one table of what came of them."""
