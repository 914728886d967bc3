"""What inference servers take: a folder with a policy and how to serve it, and what plays it as the server does.

Servers know sequences: who asks says of which robot a request is, and which is the first of an episode.
"""
