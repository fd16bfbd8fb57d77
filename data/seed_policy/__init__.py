"""The seed policy of airline-mini, and how it is made."""
