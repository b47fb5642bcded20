"""The configuration file of Litestream 0.5, for `litevfs replicate --config`.

`model` says what it means, `reading` reads it. Only what reads it needs PyYAML, so nothing is imported here.
"""
