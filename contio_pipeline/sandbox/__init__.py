"""The sandbox: the Contio Partner User API on generated data, for demos, rehearsals and tests.

What lives here: a world of generated rows (`world`), what they look like (`generate`) and a real HTTP
server over them (`server`). What never does: anything of the pipeline. The sandbox imports nothing from the
rest of the package, so that it can judge it.
"""
