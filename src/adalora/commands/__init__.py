"""The commands of ``adalora``: each a function of its flags that gives the exit status.

``adalora.cli`` has their table, and imports a module when its command is called.
"""
