"""SightSound-R1: the words that every stage of the recipe shares."""

__version__ = "0.1.0"
