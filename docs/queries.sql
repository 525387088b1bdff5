-- Questions that people ask, and their SQL. Run one with: contio-pipeline query "…", or in any tool that reads DuckDB.
-- Days are local (CONTIO_TIMEZONE); what is gone has a deleted_at. People of the same name are told apart by their id.

-- How many hours of meetings did each person have in each of the last eight weeks?
SELECT coalesce(name, email, id) AS person, week_start, round(minutes / 60, 1) AS hours, events
FROM mart.person_week JOIN mart.people ON people.id = person_id
WHERE week_start > current_date - 56 AND week_start <= current_date
ORDER BY week_start DESC, hours DESC;

-- Who is booked twice for the most hours?
SELECT coalesce(name, email, id) AS person, round(sum(minutes_booked - minutes) / 60, 1) AS hours_double_booked
FROM mart.person_week JOIN mart.people ON people.id = person_id
GROUP BY id, person HAVING hours_double_booked > 0 ORDER BY hours_double_booked DESC LIMIT 20;

-- What is open, by person, and how much of it is overdue?
SELECT coalesce(name, email, assigned_to_user_id, '(nobody)') AS person, count(*) AS open,
    count(*) FILTER (due_date < current_date) AS overdue
FROM mart.action_items LEFT JOIN mart.people ON people.id = assigned_to_user_id
WHERE closed_local_date IS NULL OR closed_local_date > current_date
GROUP BY assigned_to_user_id, person ORDER BY overdue DESC, open DESC;

-- Which action items have been overdue the longest, and from which meeting did they come?
SELECT i.title, due_date, current_date - due_date AS days_overdue, m.title AS meeting
FROM mart.action_items i LEFT JOIN mart.meetings m ON m.id = i.meeting_id
WHERE (closed_local_date IS NULL OR closed_local_date > current_date) AND due_date < current_date
ORDER BY due_date LIMIT 20;

-- How did open and overdue action items develop?
SELECT day, open, overdue, open_over_30_days, is_reconstructed FROM mart.action_item_daily
WHERE day > current_date - 90 ORDER BY day;

-- How many action items are created and completed in a week?
SELECT date_trunc('week', day)::DATE AS week, sum(created)::BIGINT AS created, sum(completed)::BIGINT AS completed
FROM mart.action_item_daily GROUP BY ALL ORDER BY week DESC LIMIT 26;

-- How long does it take to complete an action item?
SELECT date_trunc('month', completed_local_date)::DATE AS month, count(*) AS completed,
    round(median(days_to_complete), 1) AS median_days, round(quantile_cont(days_to_complete, 0.9), 1) AS ninety_percent_within_days
FROM mart.action_items WHERE is_completed AND deleted_at IS NULL AND completed_local_date IS NOT NULL
GROUP BY ALL ORDER BY month DESC;

-- Which meetings ended without notes and without action items?
SELECT local_date, title, coalesce(name, email, created_by_user_id) AS created_by
FROM mart.meeting_hygiene LEFT JOIN mart.people ON people.id = created_by_user_id
WHERE NOT has_notes AND action_items = 0 ORDER BY local_date DESC LIMIT 50;

-- What share of meetings leaves notes, month by month?
SELECT date_trunc('month', local_date)::DATE AS month, count(*) AS meetings,
    round(100 * avg(has_notes::INT), 1) AS percent_with_notes, round(100 * avg((action_items > 0)::INT), 1) AS percent_with_action_items
FROM mart.meeting_hygiene WHERE local_date IS NOT NULL GROUP BY ALL ORDER BY month DESC;

-- How long after the end of a meeting are its notes there?
SELECT date_trunc('month', local_date)::DATE AS month, count(*) AS meetings, round(median(minutes_to_summary)) AS median_minutes
FROM mart.time_to_summary WHERE NOT is_upper_bound AND minutes_to_summary IS NOT NULL GROUP BY ALL ORDER BY month DESC;

-- Which events of the coming week have no Contio meeting?
SELECT any_value(local_date) AS local_date, any_value(title) AS title, any_value(organizer_email) AS organizer_email, count(*) AS copies
FROM mart.calendar_linkage
WHERE NOT is_all_day AND local_date >= current_date AND local_date < current_date + 7
GROUP BY occurrence HAVING bool_and(link = 'none') ORDER BY local_date, title;

-- Were meetings moved away from their calendar event?
SELECT local_date, title, meeting_starts_later_minutes
FROM (  -- of a meeting's events the nearest
    SELECT DISTINCT ON (meeting_id) * FROM mart.calendar_linkage
    WHERE link = 'linked' AND meeting_starts_later_minutes IS NOT NULL
    ORDER BY meeting_id, abs(meeting_starts_later_minutes), event_id)
WHERE meeting_starts_later_minutes <> 0 ORDER BY abs(meeting_starts_later_minutes) DESC, meeting_id LIMIT 20;

-- What share of meetings is prepared with context documents?
SELECT date_trunc('month', local_date)::DATE AS month, count(*) AS meetings, count(*) FILTER (is_prepared) AS prepared,
    round(100 * avg(is_prepared::INT), 1) AS percent_prepared
FROM mart.context_coverage WHERE local_date IS NOT NULL GROUP BY ALL ORDER BY month DESC;

-- Who meets whom most?
WITH addresses AS (SELECT id AS person, unnest(emails) AS email FROM mart.people),
going AS (
    SELECT occurrence, email FROM mart.event_attendees a JOIN mart.calendar_events e ON e.id = event_id
    WHERE e.deleted_at IS NULL AND type IS DISTINCT FROM 'resource'
    GROUP BY ALL HAVING NOT coalesce(bool_or(status = 'declined'), false)
),
attended AS MATERIALIZED (SELECT DISTINCT occurrence, person FROM going JOIN addresses USING (email)),
pairs AS (
    SELECT a.person AS one, b.person AS other, count(*) AS events
    FROM attended a JOIN attended b ON b.occurrence = a.occurrence AND a.person < b.person GROUP BY ALL
)
SELECT coalesce(p.name, p.email, p.id) AS one, coalesce(q.name, q.email, q.id) AS other, events
FROM pairs JOIN mart.people p ON p.id = one JOIN mart.people q ON q.id = other
ORDER BY events DESC, p.id, q.id LIMIT 20;

-- Which meetings do several of us see, and which vanished for everybody?
SELECT title, local_date, len(seen_by) AS accounts, deleted_at FROM mart.meetings
WHERE len(seen_by) <> 1 ORDER BY deleted_at DESC NULLS LAST, local_date DESC LIMIT 50;

-- What did a meeting's title and times use to be?
SELECT id, _account AS seen_by, _changed_at, _operation, title, start_time, end_time FROM raw.meetings_history
WHERE (_account, id) IN (SELECT (_account, id) FROM raw.meetings_past) ORDER BY id, seen_by, _changed_at LIMIT 100;

-- Can I rely on what is published?
SELECT account, stream, last_listed_at, is_complete, incomplete_windows, broken_rows, reason FROM mart.sync_health
ORDER BY is_complete, incomplete_windows DESC, account, stream;

-- Which documents say something about the budget?
SELECT title, source_format, meeting_id, characters FROM mart.document_texts
WHERE deleted_at IS NULL AND (text ILIKE '%budget%' OR title ILIKE '%budget%') ORDER BY created_at DESC LIMIT 20;

-- With CONTIO_OPTIONAL_STREAMS=agenda_items: which meetings have no agenda?
SELECT local_date, title FROM mart.meetings m
WHERE deleted_at IS NULL AND NOT EXISTS (
    FROM raw.agenda_items i LEFT JOIN mart.meeting_aliases a ON a.id = _parent_id
    WHERE _deleted_at IS NULL AND coalesce(a.meeting_id, _parent_id) = m.id)
ORDER BY local_date LIMIT 20;

-- With CONTIO_OPTIONAL_STREAMS=participants: who was invited to meetings, and did not come?
WITH addresses AS (SELECT id AS person_id, unnest(emails) AS email FROM mart.people)
SELECT coalesce(people.name, people.email, people.id) AS person, count(DISTINCT meeting_id) AS meetings,
    count(DISTINCT meeting_id) FILTER (NOT is_attended) AS missed
FROM raw.participants p LEFT JOIN addresses a ON a.email = lower(trim(p.email))
JOIN mart.people ON people.id = coalesce(nullif(p.user_id, ''), a.person_id)
WHERE p._deleted_at IS NULL AND is_attended IS NOT NULL
GROUP BY people.id, person HAVING missed > 0 ORDER BY missed DESC LIMIT 20;
