"""The tour of `palaver demo`: posts comments through every edge, reads them in every region, checks each claim."""
