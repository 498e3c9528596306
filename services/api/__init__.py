"""The conventions of the public HTTP API, shared by the write API and the read API.

Decides what an error, a comment, a cursor, a thread key and a consistency header look like, and holds the
OpenAPI document of both processes. Refuses to know databases and who leads.
"""
