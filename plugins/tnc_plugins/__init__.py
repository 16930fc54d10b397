"""First-party decompositions, registered through entry points like anyone's."""
