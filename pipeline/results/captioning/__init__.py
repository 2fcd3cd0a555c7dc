"""The page on which a person hears clips and types their captions."""
