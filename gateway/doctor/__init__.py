"""``corral doctor``: facts of the machine are gathered, checks judge them, a page shows the verdicts."""
