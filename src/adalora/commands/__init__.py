"""The commands of ``adalora``, one module each: ``main(flags)`` runs it and gives its exit status.

``adalora.cli`` has their table, and imports a module when its command is called.
"""
