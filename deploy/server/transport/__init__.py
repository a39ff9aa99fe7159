"""Sockets and connections: what is between the network and a request.

listen.py       opens the sockets, TCP or Unix
accept.py       accepts connections within a limit
connection.py   receives bytes from a client within time limits
draining.py     the server around them: graceful shutdown, reload
credentials.py  tokens and the certificate, read again when they change
expiry.py       when certificates expire

Nothing here knows a route, an image or a model.
"""
