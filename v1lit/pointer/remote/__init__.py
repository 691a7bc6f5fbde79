"""The one file of code that lets transformers open an export where v1lit is not installed."""
