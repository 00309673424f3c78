"""An exported model behind HTTP: the message format, a server and a client.

Import the parts by name: :mod:`.client` needs numpy alone, :mod:`.app` the extra ``[serve]``.
docs/serving.md describes the messages for programs in other languages.
"""
