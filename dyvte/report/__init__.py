"""Result records with provenance (:mod:`dyvte.report.record`), and the tables, figures and pages made from them."""
