"""Who may write, under which epoch: names, positions, topology, coordination, members and the edge.

Imports nothing else of the product.
"""
