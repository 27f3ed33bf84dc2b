"""How far a sent workflow is, and how it ends: worked out from the ends of its tasks alone."""
