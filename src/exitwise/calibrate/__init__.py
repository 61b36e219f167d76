"""From a calibration split to thresholds. `budget` finds the cheapest setting that keeps the asked quality; a guarantee has its
own room."""
