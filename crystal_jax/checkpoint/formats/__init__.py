"""One file a format of other projects, strict both ways."""
