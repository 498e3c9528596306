"""Decides which region may write in a cell, under which epoch, and runs the ledger member and the edge of a region.

Imports no other package of the product.
"""
