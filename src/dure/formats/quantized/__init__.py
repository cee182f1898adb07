"""Layouts of quantised Hugging Face folders: one file for each family of layouts."""
