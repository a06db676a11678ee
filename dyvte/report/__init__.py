"""Result records with provenance, and the tables and figures made from them."""
