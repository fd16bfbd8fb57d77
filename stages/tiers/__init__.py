"""Tiers: tool kinds, matching, classification, and the files that declare them."""
