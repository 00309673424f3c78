"""How well a model withstands broken sensors: corruption suites, lost sensors, attacks."""
