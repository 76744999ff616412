"""Digits in a federation."""
