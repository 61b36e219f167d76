"""Running a model with exits: encoders whose rows leave, decoders whose tokens leave, and the caches that stay behind."""
