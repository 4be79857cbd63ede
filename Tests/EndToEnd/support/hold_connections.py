"""Keeps N connections to an attach socket open that say nothing, and makes new ones for those that end, until it is killed.
usage: hold_connections.py SOCKET N"""

import select
import socket
import sys


def connect(path):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except BlockingIOError:  # the daemon's backlog is full
        connection.close()
        return None
    return connection


path, wanted = sys.argv[1], int(sys.argv[2])
connections = []
while True:
    while len(connections) < wanted:
        connection = connect(path)
        if connection is None:
            break
        connections.append(connection)
    ended = select.select(connections, [], [], 0.1)[0]
    for connection in ended:
        connection.close()
    connections = [each for each in connections if each not in ended]
