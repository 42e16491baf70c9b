"""The rules of replication as a model: small enough to look at every state it can be in.

`replication.py` has rules 1 to 13 for one shard, `batches.py` rule 15 for several; `explore.py` looks for states that
break a promise. `beside.py` runs the model beside the simulation's nodes, which are the product's own code: whatever
they do must be a step that the model allows. So model, code and docs/replication.md stay in step.
"""
