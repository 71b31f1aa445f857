"""Speed as ratios of two things measured in one run; see docs/performance.md."""
