"""What `doctor` finds out about an installation and a machine, and what a recipe would cost there."""
