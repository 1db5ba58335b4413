"""What is said: the schemas of requests and answers, the specimen, the site and its ranges, the differential, problems, and in
which form an answer is wanted. It imports `wbc_model.core`.
"""
