"""Does the derivative that is chosen at ties of a max-pool matter? The study of Boustany (2024)."""
