"""Drafting: from a checkpoint's config.json and headers to the two YAMLs of its architecture.

    from assembler.drafting.drafting import draft_architecture

`inventory` folds the tensors, `anatomy` gives each a role, `library` ranks the architectures that
ship, `attempt` changes one of them until it agrees with the tensors, `drafting` writes the best.
"""
