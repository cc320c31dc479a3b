// Refreshes the live part of a page, if it has one. Without this script the page still works, by reload.
(function () {
  "use strict";

  var SAID_MS = 10000; // how long the message about what a button did is shown
  var live = document.getElementById("rlw-live");
  var everyMs = live ? Number(live.dataset.everyMs) : 0;
  var dot = document.getElementById("rlw-dot");
  var refreshed = document.getElementById("rlw-refreshed");
  var said = document.getElementById("rlw-said");
  var lanes = document.getElementById("rlw-lane"); // null if the buttons are off

  if (live) {
    document.getElementById("rlw-refresh").hidden = false;
    schedule();
  }
  if (said) {
    window.setTimeout(function () { said.remove(); }, SAID_MS);
  }

  function schedule() {
    window.setTimeout(refresh, everyMs);
  }

  function refresh() {
    if (document.hidden || selecting()) {
      schedule();
      return;
    }
    // With the origin: a page that was opened as http://user:password@host cannot fetch a relative address.
    fetch(window.location.origin + live.dataset.url, { credentials: "same-origin", cache: "no-store" })
      .then(function (answer) {
        if (answer.redirected) { // to the login
          window.location.reload();
        }
        if (!answer.ok) {
          throw new Error("HTTP " + answer.status);
        }
        return answer.text();
      })
      .then(function (html) {
        var focused = live.contains(document.activeElement) ? document.activeElement.id : "";
        live.innerHTML = html;
        focus(focused);
        offerNewLanes();
        say(true, "Live");
      })
      .catch(function (error) {
        say(false, "Not refreshed: " + error.message);
      })
      .finally(schedule);
  }

  // Whether text of it is selected, to be copied.
  function selecting() {
    var selection = window.getSelection();
    return !selection.isCollapsed && live.contains(selection.anchorNode);
  }

  // Keeps the keyboard focus where it was.
  function focus(id) {
    var there = id && document.getElementById(id);
    if (there) {
      there.focus({ preventScroll: true });
    }
  }

  function offerNewLanes() {
    if (!lanes) {
      return;
    }
    var offered = new Set(Array.from(lanes.options, function (option) { return option.value; }));
    live.querySelectorAll("[data-lane]").forEach(function (row) {
      if (!offered.has(row.dataset.lane)) {
        var after = Array.from(lanes.options).find(function (option) { return option.value > row.dataset.lane; });
        lanes.add(new Option(row.dataset.lane, row.dataset.lane), after || null);
      }
    });
  }

  function say(well, words) {
    dot.classList.toggle("status-dot-live", well);
    dot.classList.toggle("status-dot-error", !well);
    refreshed.textContent = words;
  }
})();
