"""``shmexec serve``: a script's functions for programs in any language, by JSON-RPC.

==============  ======================================================================
``jsonrpc``     lines and messages; pure
``values``      arguments and results in JSON, arrays among them; pure
``methods``     what can be asked for, with which parameters; pure
``service``     the loaded script, and what its failures look like in a reply
``transport``   a client's descriptors; the Unix socket
``calls``       a request on its way, and its reply
``outbox``      what waits to be written, and the thread that writes it
``files``       arrays in ``.npy`` files
``session``     one client: reads requests, has them carried out, writes replies
==============  ======================================================================

The command itself, with its signals, is ``shmexec.cli.serve``.
"""
