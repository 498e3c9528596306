"""The conventions of the public HTTP API, shared by the write API and the read API.

Decides the form of an error, a comment, a cursor, a thread key and a consistency header, and holds the
OpenAPI document of both processes. Does not know databases or the leader.
"""
