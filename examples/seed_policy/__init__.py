"""How the seed policy of airline-mini is made."""
