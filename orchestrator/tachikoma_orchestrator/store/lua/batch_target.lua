-- End a target of a batch that gets no execution.
--
-- KEYS
--   1  orch:batch:<id>  the batch (hash); the other names are made in `batches.lua`
-- ARGV
--   1  JSON object
--      id      batch id
--      agent   the target
--      state   DENIED or UNREACHABLE
--      reason  why, in words
-- RESULT: 1
end_target(args.id, args.agent, args.state, {error = args.reason}, '', clock())
return 1
